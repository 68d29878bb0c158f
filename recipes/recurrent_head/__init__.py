"""A light recurrent head over a draft model's last hidden state: a trial, told in docs/experiments/0029-mask-chains.md.

The draft model guesses a round's first tokens by passes of its own. From the last of these passes a head goes on: its
state begins as the hidden state there, takes in the embedding of each token guessed since, and the draft model's own
output matrix makes logits of it (recurrent drafting, Zhang et al., arXiv 2403.09919). It attends to nothing.
"""
