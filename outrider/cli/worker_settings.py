"""What `outrider up` tells each worker of its model, beside an address and cores."""

from __future__ import annotations

from outrider.cli.certificates import tls_settings
from outrider.cli.up_options import UpOptions
from outrider.core.propose.ngram import NGRAM_MODEL


def verifier_settings(options: UpOptions) -> dict[str, str]:
    """Of each verify service."""
    settings = _worker_settings(options, options.target, options.target_device, options.ngram_table)
    own = {"draft_model": options.draft or ""} if options.in_turn else {}
    return settings | own | tls_settings(options.tls, "verify")


def drafter_settings(options: UpOptions, draft: str) -> dict[str, str]:
    """The same of a draft service with the model `draft`."""
    ngram_table = options.ngram_table if draft == NGRAM_MODEL else ""
    settings = _worker_settings(options, draft, options.draft_device, ngram_table) | tls_settings(options.tls, "draft")
    return settings if options.parallel is None else settings | {"parallel": options.parallel}


def _worker_settings(options: UpOptions, model: str, device: str, ngram_table: str) -> dict[str, str]:
    on_cpu = device == "cpu"
    num_sharing = options.num_on(device)
    share = {"memory_share": f"{1 / num_sharing:.3f}"} if num_sharing > 1 else {}
    return {
        "model": model,
        "device": device,
        "dtype": ("float32" if on_cpu else "auto") if options.dtype is None else options.dtype,
        "compile": ("first" if on_cpu and options.compile_first else "auto")
        if options.compiled is None
        else options.compiled,
        "ngram_table": ngram_table,
        **share,
    }
