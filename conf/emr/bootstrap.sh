#!/usr/bin/env bash
# Bootstrap action of EMR on EC2: unpack the environment to /opt/spark-butler on this machine.
#   bootstrap.sh s3://BUCKET/spark-butler/spark-butler-env.tar.gz
set -euo pipefail
sudo rm -rf /opt/spark-butler
sudo mkdir -p /opt/spark-butler
aws s3 cp --only-show-errors "$1" - | sudo tar -xzf - --no-same-owner -C /opt/spark-butler
# Users may not write here, so what they import has to be compiled now. Fails early where the machine won't do.
sudo env -i /opt/spark-butler/bin/python -m compileall -q /opt/spark-butler/lib || true
env -i /opt/spark-butler/bin/python -c 'import spark_butler.worker.group'
