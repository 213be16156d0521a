"""Measuring a model dense and sparse, side by side: what `dsgc bench` and `benchmarks` run.

Nothing is imported here, so that the command line can show its help without loading torch.
"""
