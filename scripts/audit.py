#!/usr/bin/env python
"""Audits an environment: its SBOM, licences and known vulnerabilities.

.. code-block:: console

    $ make audit

Takes the Python of an environment with this project and its dependencies.
Writes an SBOM (CycloneDX), prints the licences, and fails if one of them is
not listed here, if a package has a known vulnerability, or if the database of
vulnerabilities (OSV) does not answer.
"""

import argparse
import json
import os
import re
import subprocess
import sys

from tabulate import tabulate

PROJECT = 'chainer_shared_patch'
# All of them let programs of any licence use the package. They are named as in
# SPDX or in the metadata of packages.
LICENSES = {
    *('0BSD', 'Apache-2.0', 'Apache Software License'),
    *('BSD-2-Clause', 'BSD-3-Clause', '3-Clause BSD License', 'BSD License'),
    *('CC0-1.0', 'MIT', 'MIT License', 'MIT-CMU'),
    'LicenseRef-OpenMPI',  # three-clause BSD
    *('MPL-2.0', 'Mozilla Public License 2.0 (MPL 2.0)'),
    *('PSF-2.0', 'Python Software Foundation License'),
    *('The Unlicense (Unlicense)', 'Zlib'),
}
# IDs of vulnerabilities that do no harm here, and why not.
ACCEPTED = {}


def run_tool(name, *args):
    """Runs a program installed beside this Python."""
    return subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), name), *args],
        capture_output=True,
        encoding='utf-8',
    )


def read_json(process):
    """Returns what a tool printed, or raises a ValueError with the reason."""
    try:
        return json.loads(process.stdout)
    except ValueError:
        lines = process.stderr.split('\n')
        reason = [line for line in lines if line.strip()] or ['no output']
        raise ValueError(reason[-1].strip()) from None


def make_root(sbom):
    """Makes the project the subject of the SBOM instead of a component."""
    (root,) = [c for c in sbom['components'] if c['name'] == PROJECT]
    sbom['components'].remove(root)
    # Where it was installed from: a path of this machine.
    root.pop('externalReferences', None)
    root.pop('purl', None)
    sbom['metadata']['component'] = root


def write_sbom(python, path):
    # Only "make audit" installs it.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    sbom = read_json(
        run_tool(
            *('cyclonedx-py', 'environment', '--output-reproducible'),
            *('--spec-version', '1.6', python),
        )
    )
    make_root(sbom)
    text = json.dumps(sbom, indent=2, sort_keys=True) + '\n'
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error:
        raise ValueError(f'{path} is not a valid SBOM: {error}')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


def check_licenses(packages):
    """Returns a message for each package with a licence that is not listed.

    If there are licences to choose from, all must be listed.
    """
    for package in packages:
        parts = re.split(r'\s+(?:AND|OR)\s+|\s*;\s*', package['License'])
        # Parentheses are part of an expression or of a name.
        others = {
            part for part in parts if not LICENSES & {part, part.strip('()')}
        }
        if others:
            yield '{} {} has a licence that is not listed: {}'.format(
                package['Name'], package['Version'], ', '.join(sorted(others))
            )


def check_vulnerabilities(packages):
    """Returns a message for each package that is vulnerable or unknown."""
    for package in packages:
        if 'skip_reason' in package:
            yield '{} was not looked up: {}'.format(
                package['name'], package['skip_reason']
            )
        for each in package.get('vulns', []):
            if ACCEPTED.keys().isdisjoint([each['id'], *each['aliases']]):
                yield '{} {} has the vulnerability {}, fixed in {}: {}'.format(
                    *(package['name'], package['version'], each['id']),
                    ', '.join(each['fix_versions']) or 'no version',
                    ' '.join(each['description'].split())[:300],
                )


def find_site_packages(python):
    code = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    return subprocess.check_output([python, '-c', code], text=True).strip()


def audit(python, path):
    """Writes the SBOM, prints the licences, and yields what is wrong."""
    write_sbom(python, path)
    print('Wrote', path)
    packages = read_json(
        run_tool(
            *('pip-licenses', '--with-system', '--format', 'json'),
            *('--python', python),
        )
    )
    columns = ('Name', 'Version', 'License')
    print(tabulate([[row[key] for key in columns] for row in packages]))
    yield from check_licenses(packages)
    try:
        report = read_json(
            run_tool(
                *('pip-audit', '--vulnerability-service', 'osv'),
                *('--format', 'json', '--progress-spinner', 'off'),
                *('--path', find_site_packages(python)),
            )
        )
    except ValueError as error:
        yield f'vulnerabilities were not checked: {error}'
    else:
        packages = report['dependencies']
        print(f'Looked up {len(packages)} packages in OSV')
        yield from check_vulnerabilities(packages)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'python', help='the Python of the environment to audit'
    )
    parser.add_argument(
        '--out',
        default='sbom.json',
        help='file for the SBOM (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    problems = list(audit(args.python, args.out))
    for problem in problems:
        print('audit:', problem, file=sys.stderr)
    return len(problems) > 0


if __name__ == '__main__':
    sys.exit(main())
