"""`tandem open`: open the console of a mesh in a browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from services.cli import arguments
from services.cli.failure import MISUSED, CommandFailed
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection


def open_(
    incident_id: Annotated[
        str, typer.Argument(metavar="[INCIDENT]", help="Id of the incident; default: the live page.")
    ] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    only_print: Annotated[bool, typer.Option("--print", help="Print the address, and open no browser.")] = False,
) -> None:
    """Open the console in a browser, at the page of an incident or at the live page, and print the address.

    Choose a role to sign in: the page of an incident is for the police, probation and reviewers.
    """
    if incident_id:
        arguments.required_id("INCIDENT", incident_id)
    running = mesh.load(folder)
    if not running.console_url:
        raise CommandFailed(f"the mesh on {folder} has no console: with --tls it needs an identity provider", MISUSED)
    url = page_of(running, incident_id)
    print(url)
    if not only_print:
        webbrowser.open(url)


def page_of(running: MeshConnection, incident_id: str) -> str:
    """URL of an incident's page on the console, or of the live page if the id is empty. Empty if there is no console."""
    if not incident_id or not running.console_url:
        return running.console_url
    return f"{running.console_url}/incidents/{incident_id}"
