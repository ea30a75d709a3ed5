"""The pod image: which files it is made of, the name that follows from them, and building and pushing it.

    pod_lock.py   the packages of our own environment on a pod, taken out of requirements.lock
    context.py    the files as one tar archive that is always the same, and its digest
    engine.py     build, push and look up, by a real Docker engine
    words.py      what the engine and the registry say, as errors of ours

The recipe of the image is deployments/image/Dockerfile.
"""
