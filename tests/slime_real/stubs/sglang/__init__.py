"""Stands in for SGLang, whose package cannot be installed without CUDA; `srt/server_args.py` says what it knows."""
