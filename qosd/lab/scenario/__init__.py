"""The demo's rounds, as they run inside the target: a guest of the lab, or the host itself.

The standard library only, and nothing of qosd's: this directory is copied to the target and started there as
`python3 -m scenario PLAN`. It measures and keeps raw figures; every calculation is done outside, afterwards.
"""
