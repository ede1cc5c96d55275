/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VSR_UTF8_H
#define VSR_UTF8_H

#include "util.h"

/*
 * Length in bytes, 1 to 4, of the well-formed UTF-8 sequence that the n bytes at s begin with; 0
 * if they begin with none (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF).
 */
size_t utf8_sequence(const uint8_t *s, size_t n);

#endif
