#!/usr/bin/env bash
# Bootstrap action of EMR on EC2: unpack the environment to /opt/spark-butler on this machine.
#   bootstrap.sh s3://BUCKET/spark-butler/spark-butler-env.tar.gz [SECRET]
# SECRET names the password of the registry in Secrets Manager; only the primary node fetches it.
set -euo pipefail
sudo rm -rf /opt/spark-butler
sudo mkdir -p /opt/spark-butler
aws s3 cp --only-show-errors "$1" - | sudo tar -xzf - --no-same-owner -C /opt/spark-butler
# Users may not write here, so what they import has to be compiled now. Fails early where the machine won't do.
sudo env -i /opt/spark-butler/bin/python -m compileall -q /opt/spark-butler/lib || true
env -i /opt/spark-butler/bin/python -c 'import spark_butler.worker.group'

if [ -n "${2:-}" ] && grep -q '"isMaster": *true' /mnt/var/lib/info/instance.json; then
  # Steps run as this user.
  sudo install -d -m 700 -o hadoop -g hadoop ~hadoop/.lsst
  aws secretsmanager get-secret-value --secret-id "$2" --query SecretString --output text |
    sudo install -m 600 -o hadoop -g hadoop /dev/stdin ~hadoop/.lsst/db-auth.yaml
fi
