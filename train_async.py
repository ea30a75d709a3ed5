"""`python train_async.py ...` runs upstream slime's own train_async.py with the same arguments; see train.py."""

from train import forward

if __name__ == "__main__":
    forward("train_async.py")
