"""Predict a survey on a SLURM cluster: a catalogue from as many jobs as there are idle cores.

Model, survey and output must lie on a file system that all nodes share. Killed jobs are replaced;
if this script is killed, run it again.

Usage: python scripts/predict_on_slurm.py MODEL SURVEY.zarr OUT.dataset --jobs 20 --cores 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dask_jobqueue import SLURMCluster

from maury.io.cluster import connect
from maury.prediction.streaming import write_catalogue


def main() -> None:
    """Submit the jobs, wait for the first worker, and predict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("survey")
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cores", type=int, default=16, help="of a job; a worker takes one")
    parser.add_argument("--gpus", type=int, default=0, help="of a job; a worker takes one")
    parser.add_argument("--memory", default="", help="of a job; 2 GB a worker by default")
    parser.add_argument("--partition", default=None)
    parser.add_argument("--walltime", default="01:00:00")
    parser.add_argument("--wait", type=float, default=3600.0, help="seconds, for the first job")
    arguments = parser.parse_args()
    workers = arguments.gpus or arguments.cores
    directives = [f"--gres=gpu:{arguments.gpus}"] if arguments.gpus else []
    with SLURMCluster(
        cores=workers,
        processes=workers,
        memory=arguments.memory or f"{2 * workers}GB",
        queue=arguments.partition,
        walltime=arguments.walltime,
        job_extra_directives=directives,
    ) as jobs:
        # Adapting, unlike scaling, replaces jobs that end before the work does.
        jobs.adapt(minimum_jobs=arguments.jobs, maximum_jobs=arguments.jobs)
        with connect(jobs.scheduler_address, timeout_s=arguments.wait) as cluster:
            written = write_catalogue(
                arguments.model, arguments.survey, arguments.out, cluster=cluster
            )
    mark = " SIMULATED" if written.simulated else ""
    print(f"{written.n_star}{mark} rows in {written.path}")


if __name__ == "__main__":
    main()
