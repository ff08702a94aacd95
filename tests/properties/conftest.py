from fixtures import case_of, config_for, data_folder, family_folder  # noqa: F401
