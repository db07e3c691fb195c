"""A stand-in for a SLURM queue: `python slurm.py sbatch|srun|sacct|scontrol ...`, each at once, on this machine.

Its state is in the folder that $QUEUE names: for each job of an array its batch file and how often it was started.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

QUEUE = Path(os.environ.get("QUEUE", "."))
ARRAY = "71"


def sbatch(file: str) -> None:
    script = Path(file).read_text()
    found = re.search(r"--array=0-(\d+)", script)
    assert found
    for number in range(int(found[1]) + 1):
        (QUEUE / f"{ARRAY}_{number}").write_text(script)
        _start(f"{ARRAY}_{number}")
    print(f"Submitted batch job {ARRAY}")


def srun(*arguments: str) -> None:
    output = arguments[arguments.index("--output") + 1]
    for pattern, name in (("%A", "SLURM_ARRAY_JOB_ID"), ("%a", "SLURM_ARRAY_TASK_ID"), ("%t", "SLURM_PROCID")):
        output = output.replace(pattern, os.environ[name])
    command = arguments[next(i for i, word in enumerate(arguments) if word.startswith("/")) + 1 :]
    Path(output).parent.mkdir(exist_ok=True)
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.execvp(command[0], command)


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for job in QUEUE.glob(f"{ARRAY}_?"):
        print(f"{job.name}|RUNNING|here")


def scontrol(verb: str, job: str) -> None:
    assert verb == "requeue"
    _start(job)


def _start(job: str) -> None:
    with (QUEUE / f"{job}.starts").open("a") as starts:
        starts.write("started\n")
    array, task = job.split("_")
    variables = {"JOB_ID": job, "ARRAY_JOB_ID": array, "ARRAY_TASK_ID": task, "NTASKS": "1", "JOB_NUM_NODES": "1"}
    variables |= {"NODEID": "0", "PROCID": "0", "LOCALID": "0"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in variables.items()}
    nowhere = subprocess.DEVNULL
    subprocess.Popen(["bash", QUEUE / job], env=environment, stdout=nowhere, stderr=nowhere, start_new_session=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
