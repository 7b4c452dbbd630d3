"""The test model, made by `benchmarks/tiny_model.py`: data files only."""
