"""Distils a draft model from any target on text that this target writes, for chains and for parallel drafting.

It is behind `outrider distill`; docs/distill.md says how to use it. The target writes the text itself (DistillSpec,
Zhou et al., arXiv 2310.08461). With mask tokens one forward pass then guesses several depths (PARD, An et al., arXiv
2504.18583).
"""
