from fixtures import config_for, data_folder, family_folder  # noqa: F401


def pytest_addoption(parser):
    parser.addoption("--keep", metavar="WHY", help="Keep new trajectories, for this reason.")
