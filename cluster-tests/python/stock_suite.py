"""Runs one check of stock Durus's own client-side tests against a server that runs already.

    stock_suite.py list
    stock_suite.py run MODULE CLASS CHECK PORT
    stock_suite.py stress PORT LOOPS

The tests are those of the unpacked source distribution in $DURUS_SOURCE, unchanged: only their _pre and _post, which
start and stop a stock server, are replaced, and the address they talk to. Prints one line of JSON.
"""
import importlib
import json
import os
import sys
import types

# The suite's test package is not installed with Durus; its modules call it durus.test.
import durus
package = types.ModuleType('durus.test')
package.__path__ = [os.path.join(os.environ['DURUS_SOURCE'], 'test')]
sys.modules['durus.test'] = package
durus.test = package

from sancho.utest import UTest, check_names, run_check

MODULES = [name[:-3] for name in sorted(os.listdir(package.__path__[0]))
           if name.startswith('utest_') and name.endswith('.py')]


def load(module):
    return importlib.import_module('durus.test.' + module)


def test_classes(module):
    """The test classes a module itself defines."""
    return {name: value for name, value in vars(load(module)).items()
            if isinstance(value, type) and issubclass(value, UTest) and value.__module__ == load(module).__name__}


def list_checks():
    return {module: {name: check_names(value) for name, value in sorted(test_classes(module).items())}
            for module in MODULES}


def run(module, class_name, check, port):
    original = test_classes(module)[class_name]

    class Here(original):
        address = ('127.0.0.1', port)

        def _pre(self):
            self.port = port

        def _post(self):
            pass

    Here.__name__ = class_name
    return run_check(Here, check)


def stress(port, loops):
    module = load('stress')
    sys.argv = ['stress.py', '--port=%d' % port, '--max-loops=%d' % loops, '--cache_size=500']
    # The size of its object graph is random up to this; its default makes one commit of some 20 MB.
    module.MAX_OBJECTS = 1000
    talk, sys.stdout = sys.stdout, sys.stderr
    try:
        module.main()
    finally:
        sys.stdout = talk


def main():
    verb, args = sys.argv[1], sys.argv[2:]
    if verb == 'list':
        print(json.dumps(list_checks()))
    elif verb == 'run':
        module, class_name, check, port = args
        print(json.dumps({'failure': run(module, class_name, check, int(port))}))
    elif verb == 'stress':
        stress(int(args[0]), int(args[1]))
        print(json.dumps({'failure': None}))
    else:
        sys.exit(__doc__)


if __name__ == '__main__':
    main()
