"""`python -m plugins.tinyslime.train_async <slime's flags>`: the same training in the order of slime's train_async.py.

Batch N+1 is drawn, and in RL generated with the weights before step N, while N is trained; so the data cursor that is
saved with N counts N+1 too (slime v0.3.1 train_async.py:36-67).
"""

import sys

from plugins.tinyslime.train import main

if __name__ == "__main__":
    sys.exit(main(ahead=True))
