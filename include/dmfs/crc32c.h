/* SPDX-License-Identifier: GPL-2.0-or-later */
/* CRC-32C (Castagnoli), as the kernel's crc32c(): reflected, no inversion at either end. */
#ifndef DMFS_CRC32C_H
#define DMFS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t dm_crc32c(uint32_t crc, const void *data, size_t len);
/* The same without the processor's instruction, for tests. */
uint32_t dm_crc32c_table(uint32_t crc, const void *data, size_t len);

#endif
