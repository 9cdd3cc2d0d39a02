"""The few lines of sancho.utest that the tests of stock Durus use."""
import sys
import traceback


def raises(exception, function, *args, **kwargs):
    """Fails unless the call raises the exception."""
    try:
        function(*args, **kwargs)
    except exception:
        return True
    raise AssertionError("%s did not raise %s" % (function, exception))


def check_names(test_class):
    """The checks of a test class: every public method that takes nothing, in order of name, as sancho has it."""
    return [name for name in dir(test_class)
            if not name.startswith('_') and callable(getattr(test_class, name))]


class UTest(object):
    """Running a class by calling it is left out: the driver runs one check at a time, by `run_check`."""

    def _pre(self):
        pass

    def _post(self):
        pass


def run_check(test_class, name):
    """One check in a fresh instance; returns what went wrong, or None."""
    test = test_class()
    try:
        test._pre()
        try:
            getattr(test, name)()
        finally:
            test._post()
    except Exception:
        return traceback.format_exc()
    return None
