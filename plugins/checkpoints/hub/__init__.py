"""What the checkpoint store `hub://` and the push of milestones share: one model repository on the Hugging Face Hub.

    place.py        hub://user/repo@branch/prefix, read
    library.py      `huggingface_hub` made safe for a trainer: time-outs, no progress bars
    errors.py       its exceptions, and those of its HTTP client, turned into ours; the only place that knows them
    sealed_file.py  a file that is hashed again while it is sent, and stops before its last bytes if it was changed
    pace.py         fewer commits an hour than the Hub allows
    repo.py         one branch: what is there, how it is read
    writing.py      one branch: commits that happen once, on the parent that was read
    probe.py        whether it can be used, and if not, why
    backend.py      the `Backend` of the store
    fetch.py        models and data sets of others, brought here at one commit; refusals.py for who may not read them
    card.py         the model card of a milestone

Importing `place`, `pace` and `card` costs nothing; the rest imports `huggingface_hub`.

Large files go by LFS over HTTP and never by Xet, because only there their bytes pass through our hands: that is the
bandwidth limit, the progress and the last look at what is sent. The Hub takes LFS for repositories on Xet as well and
moves the files there itself (https://huggingface.co/docs/hub/xet/legacy-git-lfs).
"""
