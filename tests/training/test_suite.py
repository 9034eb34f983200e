"""Every task of the package passes the suite for tasks."""

from emabench.testing.suite import *  # noqa: F403
