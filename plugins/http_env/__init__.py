"""RL environments over HTTP: the protocol, a server for simple tasks, and the generate function for the trainers.

    trainer process                                    environment process
    adapter.generate -> client ---- protocol (JSON) ---> server -> sessions -> tasks/<name>
          `-> engine -> the trainer's own /generate

What a trainer imports (adapter, rewards and below) needs httpx and the standard library only.
"""
