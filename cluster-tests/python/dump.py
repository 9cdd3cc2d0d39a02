"""Lists the objects of a database as one line of JSON: how many there are, and the SHA-1 of each record by oid.

Through a server: what root reaches. From a file: what root reaches, or with --all every object in it.
"""
import argparse
import hashlib
import json

from durus.utils import int8_to_str, str_to_int8

import common


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_source_options(parser)
    parser.add_argument('--all', action='store_true')
    options = parser.parse_args()
    storage = common.open_source(options)
    if options.all:
        assert options.file is not None, 'a server lists only what root reaches'
        items = storage.gen_oid_record()
    else:
        items = storage.gen_oid_record(start_oid=int8_to_str(0))
    objects = {str_to_int8(oid): hashlib.sha1(record).hexdigest() for oid, record in items}
    print(json.dumps({'count': len(objects), 'objects': objects}))


if __name__ == '__main__':
    main()
