"""The parts of ``benchmarks.training``; a file imports only files named before it.

``problem`` says what there is to learn, and ``digits``, ``language`` and ``clicks`` say
it three times. ``records`` are what a training leaves; ``contenders`` are who learns,
``plan`` who learns what. ``runs`` train, ``pool`` trains in several processes.
``standings`` compare the records, ``cells`` say them in words, ``pictures`` draw them;
``sensitivity``, ``neurons`` and ``report`` make the report of that.
"""
