"""Lets a process import torch without searching for garbage; to be imported before that."""

from ofq.starting import start_fast

start_fast()
