"""Cases are made and compiled once."""

import pytest
from cases import Case, config_of, write_family, write_records


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """(family, layers) -> the folder of its tiny checkpoint."""
    folders = {}

    def folder(family, layers):
        if (family, layers) not in folders:
            folders[family, layers] = tmp_path_factory.mktemp("family")
            write_family(folders[family, layers], family, layers)
        return folders[family, layers]

    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """(objective, how many times eight records) -> the folder of its records."""
    folders = {}

    def folder(objective, times):
        if (objective, times) not in folders:
            folders[objective, times] = tmp_path_factory.mktemp(objective)
            write_records(folders[objective, times], objective, times)
        return folders[objective, times]

    return folder


@pytest.fixture(scope="session")
def config_for(family_folder, data_folder):
    """(objective, family, what `config_of` takes) -> config."""

    def make(objective, family, *, layers=2, times=1, **given):
        folders = family_folder(family, layers), data_folder(objective, times)
        return config_of(objective, *folders, **given)

    return make


@pytest.fixture(scope="session")
def case_of(config_for):
    """(objective, family, layers) -> its case."""
    cases = {}

    def case(objective, family, layers=2):
        key = objective, family, layers
        if key not in cases:
            cases[key] = Case(config_for(objective, family, layers=layers))
        return cases[key]

    return case
