# Install Fashion-MNIST from the Debian package if possible. Otherwise the pipeline downloads the data.
set -eu
folder=/usr/share/datasets/fashion-mnist
[ -e "$folder/train-images-idx3-ubyte.gz" ] && exit 0
[ -d data/raw ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get install -y -qq dataset-fashion-mnist >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist >/dev/null; } ||
    echo "headstart: no Debian package dataset-fashion-mnist; the pipeline will download the data" >&2
fi
