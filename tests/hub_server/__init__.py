"""A small Hugging Face Hub on this machine, for tests: enough for the unmodified `huggingface_hub` library and `hf`.

    python -m tests.hub_server ROOT [--port N]        HF_ENDPOINT=http://127.0.0.1:N

    names.py      what the Hub answers: errors with their headers, git hashes, which file becomes LFS
    accounts.py   tokens, their owners and rights
    repos.py      repositories on the disk: branches, tags, commits, small files; every change is one rename
    storage.py    LFS objects, plain and in parts, behind signed addresses that refuse a token, as object stores do
    commits.py    the ndjson of a commit
    pages.py      trees, commits and files that are read
    app.py        the routes; faults.py makes them fail; running.py starts it all

Written from the traffic of the library; see `test_hub_server.py` for what was checked with it. It knows no Xet, no
buckets, no pull requests and no organisations' plans.
"""
