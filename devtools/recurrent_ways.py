"""Measure the two ways of LSTM and GRU for the record of a device, as `fastgrad tune` does, and write it to a file.

python -m devtools.recurrent_ways FILE              on a machine with a GPU
python -m devtools.recurrent_ways FILE --rehearse   on the CPU, one small size: its times mean nothing
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from fastgrad.kernels import cuda

from fastgrad._gpu import require_gpu
from fastgrad.profiling.recurrent_ways import SECONDS, Grid, measure

from .every_op import emulated_module

REHEARSAL = Grid(hidden=(8,), largest_batch=2, steps=3, inputs=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin no further size after these")
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    xp = emulated_module() if arguments.rehearse else require_gpu("devtools.recurrent_ways")
    found = measure(
        cuda.device_of(xp.empty(1, np.float32)),
        grid=REHEARSAL if arguments.rehearse else Grid(),
        seconds=arguments.seconds,
        say=lambda text: print(text, flush=True),
    )
    print(found)
    arguments.file.write_text(json.dumps(found.document))


if __name__ == "__main__":
    main()
