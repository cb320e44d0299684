/* Classifies an image with an ensemble that `sparsemble export RUN --format c` wrote.

   cc -O2 -std=c99 -I runs/digits/c -o edge examples/edge.c runs/digits/c/ensemble.c -lm
   ./edge digit.pgm

   Reads PPM (P6, three channels) or PGM (P5, one channel) of the ensemble's size, with values up to 255. */
#include "ensemble.h"

#include <stdio.h>
#include <string.h>

static int fail(const char *path, const char *sentence)
{
    fprintf(stderr, "error: %s %s\n", path, sentence);
    return 2;
}

/* Reads a whole number behind white space and comments; returns -1 if there is none. */
static long read_number(FILE *file)
{
    long number = 0;
    int c = getc(file);
    while (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF)
                c = getc(file);
        else
            c = getc(file);
    }
    if (c < '0' || c > '9')
        return -1;
    for (; c >= '0' && c <= '9' && number < 100000; c = getc(file))
        number = 10 * number + (c - '0');
    return number; /* the one character behind the number is read, too */
}

int main(int count, char **words)
{
    static uint8_t pixels[PREDICT_HEIGHT * PREDICT_WIDTH * PREDICT_CHANNELS];
    static float probabilities[PREDICT_CLASSES];
    char magic[2] = {0, 0};
    long width, height, largest;
    size_t complete;
    FILE *file;
    int k, label;

    if (count != 2) {
        fprintf(stderr, "usage: edge image.%s\n", PREDICT_CHANNELS == 1 ? "pgm" : "ppm");
        return 2;
    }
    file = fopen(words[1], "rb");
    if (!file)
        return fail(words[1], "cannot be opened");
    complete = fread(magic, sizeof magic, 1, file);
    width = read_number(file);
    height = read_number(file);
    largest = read_number(file);
    if (complete != 1 || memcmp(magic, PREDICT_CHANNELS == 1 ? "P5" : "P6", 2) || largest < 0) {
        fclose(file);
        return fail(words[1], PREDICT_CHANNELS == 1 ? "is no PGM image (P5)" : "is no PPM image (P6)");
    }
    if (width != PREDICT_WIDTH || height != PREDICT_HEIGHT || largest != 255) {
        fclose(file);
        fprintf(stderr, "error: %s has %ld x %ld pixels up to %ld; the ensemble takes %d x %d up to 255\n", words[1],
                width, height, largest, PREDICT_WIDTH, PREDICT_HEIGHT);
        return 2;
    }
    complete = fread(pixels, sizeof pixels, 1, file);
    fclose(file);
    if (complete != 1)
        return fail(words[1], "is truncated");

    label = predict(pixels, probabilities);
    printf("%s (%.1f %%, %d of %d members)\n", class_names[label], 100.0 * probabilities[label], members_run(),
           PREDICT_MEMBERS);
    for (k = 0; k < PREDICT_CLASSES; k++)
        printf("%.4f %s\n", probabilities[k], class_names[k]);
    return 0;
}
