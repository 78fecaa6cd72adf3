"""Pages for people: a report per participant with quality flags, and tables and a page of the whole group.

Everything here reads derivatives only: the raw dataset, the networks and the work folder are not needed.
"""
