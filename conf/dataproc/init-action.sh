#!/usr/bin/env bash
# Initialization action of Dataproc: unpack the environment to /opt/spark-butler on this machine, and fetch the key of the object store.
# Metadata of the cluster:
#   spark-butler-archive   gs://BUCKET/spark-butler/spark-butler-env.tar.gz
#   spark-butler-secret    optional: a secret of Secret Manager in the form of ~/.aws/credentials
set -euo pipefail
archive=$(/usr/share/google/get_metadata_value attributes/spark-butler-archive)
secret=$(/usr/share/google/get_metadata_value attributes/spark-butler-secret || true)

rm -rf /opt/spark-butler
mkdir -p /opt/spark-butler
gcloud storage cat "$archive" | tar -xzf - --no-same-owner -C /opt/spark-butler
# Users may not write here, so what they import has to be compiled now. Fails early where the machine won't do.
env -i /opt/spark-butler/bin/python -m compileall -q /opt/spark-butler/lib || true
env -i /opt/spark-butler/bin/python -c 'import spark_butler.worker.group'

if [ -n "$secret" ]; then
  umask 077
  gcloud secrets versions access latest --secret "$secret" > /etc/spark-butler-credentials
  # Containers of YARN run as this user.
  chown yarn /etc/spark-butler-credentials
fi
