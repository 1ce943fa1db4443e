/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tags made anew from the data, in the background, up to the superblock's position; mode B: of its dirty regions alone. */
#ifndef INTEGRITY_RECALC_H
#define INTEGRITY_RECALC_H

#include "integrity.h"

void integrity_recalc_new(struct integrity *ic);
void integrity_recalc_free(struct integrity *ic);
/* Goes on from where the superblock says, if there is anything to do. */
void integrity_recalc_start(struct integrity *ic);
/* No new part is begun. */
void integrity_recalc_stop(struct integrity *ic);
/* Waits until it has stopped, its position durable. */
void integrity_recalc_wait(struct integrity *ic);

#endif
