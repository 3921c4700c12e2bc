# Makes the volume at the first start, and leaves the TPM as the only way into it.
disk=/dev/vdb
if cryptsetup isLuks "$disk"; then
    exit 0
fi
umask 077
key=/run/sealed.key
head -c 32 /dev/urandom > "$key"
# The key is random: nothing is gained by making it slow.
cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$disk" "$key"
cryptsetup open --key-file "$key" "$disk" unsealed
mke2fs -q -t ext4 /dev/mapper/unsealed
cryptsetup close unsealed
# Whatever the vendor signed of PCR 11; and of PCR 12, where a command line from elsewhere is measured, what it is now: nothing.
systemd-cryptenroll --unlock-key-file="$key" --wipe-slot=password --tpm2-device=auto \
    --tpm2-public-key=/run/systemd/tpm2-pcr-public-key.pem --tpm2-public-key-pcrs=11 --tpm2-pcrs=12:sha256 "$disk"
rm "$key"
echo "the volume is made"
