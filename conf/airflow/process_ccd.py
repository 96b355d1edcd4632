"""A nightly run in Airflow, by spark-submit; copy it into Airflow's folder of DAGs.

Airflow's worker is the driver's machine (client mode): it needs Spark, the
checkout in `CHECKOUT`, and the environment that `make env-archive` has packed.
The connection `spark_default` names the cluster.  For other services, see
README.md.
"""

from __future__ import annotations

import datetime

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG

CHECKOUT = "/opt/spark-butler"
REPO = "s3://BUCKET/repo"
# The chain of a night's attempts: a retry runs only what is missing in it.
RUN = "u/airflow/{{ ds_nodash }}"

with DAG(
    dag_id="process_ccd",
    schedule="0 16 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    # Runs of different nights don't share an output run, but one repository and one cluster.
    max_active_runs=1,
    tags=["spark-butler"],
) as dag:
    SparkSubmitOperator(
        task_id="process_night",
        application=f"{CHECKOUT}/jobs/process_ccd.py",
        properties_file=f"{CHECKOUT}/conf/standalone/spark-defaults.conf",
        archives=f"{CHECKOUT}/dist/spark-butler-env.tar.gz#environment",
        conf={"spark.pyspark.driver.python": f"{CHECKOUT}/.venv/bin/python"},
        name="process_ccd-{{ ds_nodash }}",
        application_args=[
            *("-b", REPO, "-i", "SimCam/defaults", "-o", RUN, "--skip-existing-in", RUN),
            *("-d", "instrument='SimCam' AND exposure.day_obs={{ ds_nodash }}"),
            *("--register-dataset-types", "--temporary", "auto"),
        ],
        # Exit status 1 is failed quanta, too: a retry then runs these again and nothing else.
        retries=2,
        retry_delay=datetime.timedelta(minutes=10),
        execution_timeout=datetime.timedelta(hours=12),
    )
