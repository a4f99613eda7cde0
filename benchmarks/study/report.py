"""Tables and pictures of all records."""


def write_report(records, plan, folder):
    """To come."""
