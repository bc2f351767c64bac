"""Config of a small study: two methods, two seeds, short stages."""

CONFIG = {
    "config.yaml": "studies: [tiny]\n",
    "methods/known.yaml": """
lsq: {label: LSQ, weight_quantizer: lsq}
statsq: {label: StatsQ, weight_quantizer: statsq}
statsq+qkr: {label: StatsQ + QKR, weight_quantizer: statsq, qkr: true}
statsq+qkr+cga:
  label: OFQ
  weight_quantizer: statsq
  qkr: true
  cga: {boundary_range: 0.005}
""",
    "recipes/small.yaml": """
dataset: digits
models: [micro_deit_patch2_8]
stages:
  fp: {epochs: 2, batch_size: 64, lr: 2.0e-3}
  qat: {epochs: 2, batch_size: 64, lr: 1.0e-3, min_lr: 1.0e-4, distillation: true}
  cga: {epochs: 1, batch_size: 64, lr: 1.0e-4, min_lr: 1.0e-4, distillation: true}
""",
    "studies/tiny.yaml": """
title: A tiny study
description: For tests.
recipe: small
models: [micro_deit_patch2_8]
bits: [W2A2]
methods: [lsq, statsq+qkr+cga]
seeds: [0, 1]
figures: [accuracy, oscillation_over_training, oscillation_by_role]
""",
}
