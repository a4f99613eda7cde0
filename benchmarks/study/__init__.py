"""The parts of ``benchmarks.training``; a file imports only files named before it.

``problem`` says what there is to learn, and ``digits``, ``language`` and ``clicks`` say
it three times; ``contenders`` are who learns it, ``plan`` who learns what. ``records``
are what a training leaves, ``runs`` train, ``pool`` trains in several processes, and
``report`` makes tables and ``pictures`` of the records.
"""
