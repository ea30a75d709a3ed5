"""The only way from a pod to the Prefect API: a reverse proxy that lets a pod touch what is its own, nothing else.

pod -> service -> proxy   -> gate (token, rate) -> routes -> rules, states -> upstream -> Prefect API
               `-> sockets -> gate               -> events                 -'
                               rules ask `standing`, which asks upstream, what is the pod's own
"""
