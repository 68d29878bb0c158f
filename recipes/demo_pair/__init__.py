"""Trains a target and a draft model on the standard library of the running interpreter.

From nothing but that source text come a byte-level BPE tokenizer, a Llama-type target trained by next-token loss and a
smaller draft distilled from it, on source and on text that the target writes. Both are saved as bf16 safetensors
folders, next to a README with what they reach on files that neither has seen. A run that was stopped goes on from its
last checkpoint when it is started again.

    python -m recipes.demo_pair build/demo_pair
    python -m recipes.demo_pair build/draft --target models/target                        # only a draft for that target
    python -m recipes.demo_pair build/draft --target models/target --draft models/draft   # that goes on from that draft
    python -m recipes.demo_pair.evaluation --draft build/draft/draft                      # what it guesses
"""
