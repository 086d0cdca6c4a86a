"""A study: data sets x models x methods x protocols x label fractions x seeds, run as ordinary runs.

``config`` reads study.yaml, ``grid`` makes runs of it, ``checks`` tries them on data and models, ``runner`` runs what is
not finished (``local`` in processes of this machine, ``ray_executor`` on Ray), ``cell`` is one run in its own process,
``search`` chooses hyper-parameters by validation, ``estimate`` says how long and how much memory.
"""
