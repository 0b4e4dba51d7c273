"""`make demo`: an LS service and BE jobs on one target, with qosd and without, measured and reported."""
