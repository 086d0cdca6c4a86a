"""The service behind ``vlsm serve``: several adapters on one base model in memory, asked over HTTP.

``settings`` what it is told; ``library`` the adapters it may load; ``engine`` the model, ``worker`` the one thread that
owns it; ``caches`` bounded memory; ``images`` what was uploaded; ``answers`` masks as PNG; ``corrections`` what is saved;
``service`` brings them together, without HTTP; ``guard`` limits, token and headers; ``api`` the routes; ``run`` the process.
"""
