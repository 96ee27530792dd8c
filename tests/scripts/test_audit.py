"""The audit, with what pip-licenses, cyclonedx-py and pip-audit print."""

import importlib.util
import json
from pathlib import Path
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import pytest

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'audit.py'


@pytest.fixture(scope='module')
def audit():
    spec = importlib.util.spec_from_file_location('audit', str(SCRIPT))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    'text',
    [
        'MIT',
        'Mozilla Public License 2.0 (MPL 2.0)',
        'Apache-2.0 OR BSD-2-Clause',
        'MIT License; BSD License',
        'BSD-3-Clause AND (MIT OR Zlib)',
    ],
)
def test_listed_licenses(text, audit):
    package = {'Name': 'a', 'Version': '1', 'License': text}
    assert list(audit.check_licenses([package])) == []


@pytest.mark.parametrize(
    'text, other',
    [
        ('UNKNOWN', 'UNKNOWN'),
        ('GPL-3.0-only', 'GPL-3.0-only'),
        ('MIT AND (LGPL-2.1 OR BSD-3-Clause)', '(LGPL-2.1'),
        ('MIT License; GNU General Public License', 'GNU General Public'),
    ],
)
def test_other_licenses(text, other, audit):
    packages = [
        {'Name': 'a', 'Version': '1', 'License': 'MIT'},
        {'Name': 'b', 'Version': '2', 'License': text},
    ]
    (message,) = audit.check_licenses(packages)
    assert message.startswith('b 2 has a licence that is not listed: ' + other)


def test_vulnerabilities(audit, monkeypatch):
    vulnerability = {
        'id': 'PYSEC-1',
        'aliases': ['CVE-1'],
        'fix_versions': ['1.1', '2.0'],
        'description': 'It\nbreaks.',
    }
    packages = [
        {'name': 'a', 'version': '1.0', 'vulns': [vulnerability]},
        {'name': 'b', 'version': '1.0', 'vulns': []},
    ]
    assert list(audit.check_vulnerabilities(packages)) == [
        'a 1.0 has the vulnerability PYSEC-1, fixed in 1.1, 2.0: It breaks.'
    ]
    for name in 'PYSEC-1', 'CVE-1':
        monkeypatch.setattr(audit, 'ACCEPTED', {name: 'never called'})
        assert list(audit.check_vulnerabilities(packages)) == []


def test_what_was_not_looked_up_is_a_problem(audit):
    packages = [{'name': 'a', 'skip_reason': 'not found'}]
    assert list(audit.check_vulnerabilities(packages)) == [
        'a was not looked up: not found'
    ]


OUTPUT = {
    'cyclonedx-py': '{}',
    'pip-licenses': '[{"Name": "a", "Version": "1", "License": "MIT"}]',
    'pip-audit': '{"dependencies": [{"name": "a", "version": "1"}]}',
}


@pytest.mark.parametrize('output, status', [(OUTPUT['pip-audit'], 0), ('', 1)])
def test_without_an_answer_the_audit_fails(
    output, status, audit, monkeypatch, capsys
):
    def run_tool(name, *args):
        stdout = {**OUTPUT, 'pip-audit': output}[name]
        stderr = 'Traceback\nConnectionError: no such host\n\n'
        return subprocess.CompletedProcess([name], 1, stdout, stderr)

    monkeypatch.setattr(audit, 'run_tool', run_tool)
    monkeypatch.setattr(audit, 'write_sbom', lambda python, path: None)
    assert audit.main([sys.executable]) == status
    expected = (
        'audit: vulnerabilities were not checked: '
        'ConnectionError: no such host\n'
    )
    assert capsys.readouterr().err == expected * status


def test_sbom_describes_the_project(audit):
    project = {
        'name': 'chainer_shared_patch',
        'bom-ref': 'chainer_shared_patch==0.1.0',
        'externalReferences': [{'url': 'file:///home/me'}],
    }
    sbom = {'components': [{'name': 'numpy'}, project], 'metadata': {}}
    audit.make_root(sbom)
    assert [each['name'] for each in sbom['components']] == ['numpy']
    root = sbom['metadata']['component']
    assert root['bom-ref'] == 'chainer_shared_patch==0.1.0'
    assert 'file:' not in json.dumps(sbom)
