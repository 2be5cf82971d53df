#!/bin/sh
# Makes what the Dataflow Flex Template is built of (wheel, lock, launcher, metadata) in build/dataflow, and the template itself
# where it is said where to, and docker and gcloud are here; else says the commands.
#
#   make dataflow-template                                   # what can be made here, and the commands for the rest
#   make dataflow-template IMAGE=europe-west4-docker.pkg.dev/PROJECT/REPOSITORY/eidetic:0.1.0 TEMPLATE=gs://BUCKET/eidetic.json
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
here=deploy/dataflow
out=build/dataflow

fail() {
  echo "$1" >&2
  exit 2
}

case ${TEMPLATE:-gs://} in gs://*) ;; *) fail "TEMPLATE is '$TEMPLATE', expected gs://BUCKET/FILE.json" ;; esac
[ -n "${IMAGE:-}" ] || [ -z "${TEMPLATE:-}" ] || fail "TEMPLATE says where the template goes, but not of which image: name IMAGE too"

# setuptools would put into the wheel what an earlier one has left.
rm -rf "$out" build/lib build/bdist.*
mkdir -p "$out"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$out" .
cp requirements.lock "$here/Dockerfile" "$here/launch.py" "$out"
"$python" -m pipelines.flex_template > "$out/metadata.json"
echo "made in $out: $(cd "$out" && echo *)"

image=${IMAGE:-REGION-docker.pkg.dev/PROJECT/REPOSITORY/eidetic:VERSION}
template=${TEMPLATE:-gs://BUCKET/eidetic.json}
build="docker build --build-arg IMAGE=$image --tag $image $out"
push="docker push $image"
spec="gcloud dataflow flex-template build $template --image=$image --sdk-language=PYTHON --metadata-file=$out/metadata.json"

# Google's own reader of the metadata; it sends nothing.
if command -v gcloud > /dev/null; then
  $spec --print-only > /dev/null || fail "gcloud does not take $out/metadata.json; see above"
  echo "gcloud takes the metadata"
else
  echo "gcloud is not on this machine: the metadata are checked by 'make test' alone, and the template is built where it is"
fi
if [ -z "${IMAGE:-}" ]; then
  printf 'to build the image and the template, name IMAGE and TEMPLATE, or:\n  %s\n  %s\n  %s\n' "$build" "$push" "$spec"
  exit
fi
command -v docker > /dev/null || fail "docker is not on this machine; where it is: $build && $push"
docker info > /dev/null 2>&1 || fail "docker's daemon does not answer; start it, and then: $build && $push"
$build
$push
if [ -z "${TEMPLATE:-}" ]; then
  printf 'to build the template, name TEMPLATE, or:\n  %s\n' "$spec"
  exit
fi
command -v gcloud > /dev/null || fail "gcloud is not on this machine; where it is: $spec"
$spec
