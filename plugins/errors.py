"""Every error of trainstack, and the one decision that belongs to each.

    TrainstackError
    ├── UserError          never retried: bad recipe, bad flag, bad credentials, the trainer's own failure
    │   └── Refused        a guard said no before money was spent or data was lost
    ├── CapacityError      no machine for the recipe now: wait and look again
    ├── PodLost            the pod is gone or unreachable for good: a new attempt on another pod
    ├── ControlPlaneError  Prefect, Lium or SSH did not answer: wait; never touches the training
    ├── StoreError         a checkpoint store failed: warn, retry in the background
    │   ├── TornCheckpoint a checkpoint is not complete or was changed: take the one before
    │   └── Fenced         a newer attempt writes: stop writing
    └── EnvError           an RL environment failed: drop the sample, never score it

Foreign exceptions are converted at the boundary of the plugin that called the foreign code, and nowhere else.
A message says what happened, to which run, pod or file, and what to do about it.
"""


class TrainstackError(Exception):
    """Base of all errors raised on purpose by trainstack."""


class UserError(TrainstackError):
    """The user must change something; trying again as it is cannot help."""


class Refused(UserError):
    """A guard refused before anything was rented, built or deleted."""


class CapacityError(TrainstackError):
    """The marketplace has no machine that fits the recipe at this moment."""


class PodLost(TrainstackError):
    """The pod ended, vanished or cannot be reached any more."""


class ControlPlaneError(TrainstackError):
    """A control-plane service (Prefect, Lium, SSH) failed or did not answer in time."""


class StoreError(TrainstackError):
    """A checkpoint store failed; the checkpoint is still where it was."""


class TornCheckpoint(StoreError):
    """A checkpoint is incomplete, damaged, or changed after it was sealed."""


class Fenced(StoreError):
    """A newer attempt holds the run; this writer must stop."""


class EnvError(TrainstackError):
    """An RL environment did not answer or broke its protocol."""
