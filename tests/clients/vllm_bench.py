"""vLLM's `bench serve` by its module: the CPU build lacks the metadata that the command `vllm` asks for."""

import argparse

from vllm.benchmarks.serve import add_cli_args, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
