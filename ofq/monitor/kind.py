"""Kinds of runs: runs of one kind take equally long per epoch on the same hardware."""

from collections.abc import Mapping
from typing import Any

from ofq.config import Run
from ofq.config.files import Strict


class Kind(Strict):
    """Properties of a run that decide how long its epoch takes on given hardware.

    Attributes:
        dataset, model, stage, bits: Settings of the run; bits are ``FP`` in full precision.
        method: The run's techniques, without their settings.
        batch_size: Images per step, over all devices; 0 for an evaluation.
        taught: Whether a teacher's forward pass is part of a step.
        gpus: Number of GPUs; 0 for the processor.
        precision: Precision of its products.
        teacher: Precision of its teacher's; ``fp32`` if there is none.
    """

    dataset: str
    model: str
    stage: str
    bits: str
    method: str
    batch_size: int
    taught: bool
    gpus: int
    precision: str = "fp32"
    teacher: str = "fp32"

    def resembles(self, other: "Kind") -> bool:
        """Return whether only bits, method or the quantized stage (QAT or CGA) differ."""
        return self._core() == other._core()

    def _core(self) -> tuple[Any, ...]:
        quantized = self.stage in ("qat", "cga")
        stage = "quantized" if quantized else self.stage
        trained = self.batch_size, self.taught, self.precision, self.teacher
        return self.dataset, self.model, stage, self.gpus, *trained


def kind_of(run: Run) -> Kind:
    """Return a run's kind."""
    return kind_of_config(run.config.payload(), run.resources.gpu)


def passes_of(config: Mapping[str, Any]) -> int:
    """Return the number of passes over the data, given a run's config as in ``run.json``.

    That is the epochs of a training; the evaluations with injected noise and the one without; else
    one.
    """
    if config["training"]:
        return int(config["training"]["epochs"])
    return int(config["noise"]["samples"]) + 1 if config.get("noise") else 1


def kind_of_config(config: Mapping[str, Any], gpus: int) -> Kind:
    """Return a run's kind, given its config as in ``run.json``."""
    quantization, training = config["quantization"] or {}, config["training"] or {}
    return Kind(
        dataset=config["dataset"],
        model=config["model"],
        stage=config["stage"],
        bits=quantization.get("bits", "FP"),
        method="+".join(_techniques(config, quantization)) or "fp",
        batch_size=training.get("batch_size", 0),
        taught=training.get("distillation", False),
        gpus=gpus,
        precision=training.get("precision", "fp32"),
        teacher=training.get("teacher", {}).get("precision", "fp32"),
    )


def _techniques(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> list[str]:
    names = [quantization["weight_quantizer"]] if quantization else []
    if quantization.get("qkr"):
        names.append("qkr" if quantization["qkr"] is True else f"qkr_{quantization['qkr']}")
    holders = (
        config.get("stabilizer"), *config.get("techniques", ()), config.get("annealing"),
    )  # fmt: skip
    return names + [holder["form"] for holder in holders if holder]
