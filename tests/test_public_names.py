"""Every public name can be imported, from a package that imports nothing before it is asked."""

import importlib

import pytest

PACKAGES = ["lightning_gp.functional", "lightning_gp.theory"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert callable(getattr(module, name))
        assert name in dir(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_names_are_refused_by_name(package):
    with pytest.raises(AttributeError, match="no_such_name"):
        importlib.import_module(package).no_such_name  # noqa: B018
