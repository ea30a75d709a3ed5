"""`python -m tests.bench`: small parts first, then checkpoints of GB gigabytes (default 4) at four stores.

Machines differ and are noisy, so no absolute time is asserted or promised; each row pairs ours with a baseline,
alternating, and gives the ratio of the medians.
"""

import os

from tests.bench import checkpoints, small

small.main()
checkpoints.main(float(os.environ.get("GB", "4")), int(os.environ.get("ROUNDS", "3")))
